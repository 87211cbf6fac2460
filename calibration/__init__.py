"""Films in, activation scales and importance matrices out."""
