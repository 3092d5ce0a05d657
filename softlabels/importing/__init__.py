"""Labels of other projects become a store (`projects`), and labels meet images of another loader (`attach`)."""
