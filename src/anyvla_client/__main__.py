"""``python -m anyvla_client`` is the command ``anyvla-client``."""

from anyvla_client.fake import main

raise SystemExit(main())
