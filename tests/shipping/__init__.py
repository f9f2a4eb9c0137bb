"""From training to the files that are shipped, and back."""
