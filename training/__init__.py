"""Films and questions in, checkpoint out. The torch world."""
