"""Parts of networks, torch only: attention, linear layers, adapters, decoding. Knows nothing about text, names or files of projects."""
