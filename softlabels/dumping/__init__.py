"""Stage 1: run teachers once over views of every image and store their logits."""
