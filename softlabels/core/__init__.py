"""What every part of the package builds on; nothing here knows images, networks or labels."""
