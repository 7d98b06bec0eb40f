"""The ``dledger`` command. Each verb has a module of its own, imported only when it is used."""
