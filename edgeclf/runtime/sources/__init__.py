"""Where frames come from: cameras, streams, files; each read in a thread or process of its own."""
