"""Random changes to training pictures, and a look at them."""
