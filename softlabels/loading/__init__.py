"""The one way of every image and label into a batch, for both stages."""
