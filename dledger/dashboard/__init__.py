"""The live page: a watcher of all nodes, series and sentences made of what it sees, and the server that shows them."""
