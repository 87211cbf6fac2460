"""Bundle and film in, answer out. Numpy only: nothing here imports torch or transformers."""
