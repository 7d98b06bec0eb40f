"""The driver: orders disk, network and core. Ordinary asyncio code that starts no thread and opens no socket itself."""
