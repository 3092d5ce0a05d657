"""Ground for all parts, without a domain of its own."""
