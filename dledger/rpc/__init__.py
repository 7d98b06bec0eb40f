"""gRPC, thin: codecs, peer streams and services. Bytes and messages in and out; no decision is taken here."""
