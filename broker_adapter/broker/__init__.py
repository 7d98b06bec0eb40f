"""The broker process: what stands between the remoting protocol and the message store."""
