"""Matrix products of linear layers and of the output head, by the library that is fastest on this machine."""
