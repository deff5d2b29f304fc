"""What drafting keeps on disk: the n-gram store, and datastores of the user's documents."""
