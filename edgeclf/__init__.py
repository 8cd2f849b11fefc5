"""edgeclf: from a folder of pictures to a classifier that runs live on a small board."""
