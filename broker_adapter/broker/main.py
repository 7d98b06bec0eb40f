"""Entry point of ``mqbroker``."""

from __future__ import annotations

from dledger.grpc_engine import prefer_polling

__all__ = ["main"]


def main() -> None:
    """Run ``mqbroker`` and leave the process with its exit code."""
    prefer_polling()  # before anything imports gRPC
    from broker_adapter.broker.command import mqbroker  # noqa: PLC0415
    from broker_adapter.process import run_command  # noqa: PLC0415

    run_command(mqbroker, "mqbroker")


if __name__ == "__main__":
    main()
