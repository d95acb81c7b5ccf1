"""Side-by-side measurements of this proxy and its peers: `python -m benchmarks --help`, and README.md on how to read them."""
