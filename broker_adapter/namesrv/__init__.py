"""The name server: where brokers say that they are there, and clients ask who has a topic."""
