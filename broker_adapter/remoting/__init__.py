"""RocketMQ's remoting protocol: commands, frames, a server and a client for asyncio."""
