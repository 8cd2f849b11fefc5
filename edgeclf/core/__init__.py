"""Values, formats and pixels: needs the standard library, numpy and (in `image.py`) OpenCV, nothing else."""
