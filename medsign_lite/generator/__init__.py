"""Making the bundled text-to-image model, and training one on data of one's own."""
