"""navit's loader: whole images of any size, packed into fixed-length sequences by a plan made from headers alone."""
