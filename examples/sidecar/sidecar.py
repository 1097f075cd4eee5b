#!/usr/bin/env python3
"""A shop that writes orders and messages with plain SQL; `outbox-relay` publishes the messages.

Order and message go into one transaction: either both are there or neither. Every tenth order is rolled
back on purpose: its message must never be published.

usage: sidecar.py DATABASE [--orders N] [--wait SECONDS]

DATABASE is a postgres:// URL (needs Debian's python3-psycopg2) or the path of a SQLite file (needs nothing).
Run `outbox-relay migrate` first: it creates the table `outbox`.
"""

import argparse
import json
import sqlite3
import sys
import time

ROLLED_BACK_EVERY = 10

CUSTOMERS = ["ada", "grace", "linus", "margaret", "ken"]

# The ordering key keeps the messages of one customer in order. Columns left out have defaults: the message
# id, the time, the content type. `source` and the id are what a consumer recognises a duplicate by.
INSERT_MESSAGE = """
INSERT INTO outbox (topic, key, type, source, headers, payload)
VALUES ({0}, {0}, {0}, {0}, {0}, {0})
"""


class Shop:
    def __init__(self, database):
        if database.startswith(("postgres://", "postgresql://")):
            import psycopg2

            self.connection = psycopg2.connect(database)
            self.placeholder = "%s"
            key = "bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY"
        else:
            self.connection = sqlite3.connect(database, timeout=10)
            self.placeholder = "?"
            key = "INTEGER PRIMARY KEY AUTOINCREMENT"
        self.execute(
            f"CREATE TABLE IF NOT EXISTS orders (id {key}, customer text NOT NULL, cents integer NOT NULL)"
        )
        self.connection.commit()

    def execute(self, statement, values=()):
        cursor = self.connection.cursor()
        cursor.execute(statement, values)
        return cursor

    def place(self, customer, cents):
        """Writes an order and its message; the caller commits or rolls back."""
        p = self.placeholder
        order = self.execute(
            f"INSERT INTO orders (customer, cents) VALUES ({p}, {p}) RETURNING id", (customer, cents)
        ).fetchone()[0]
        payload = json.dumps({"order": order, "customer": customer, "cents": cents})
        self.execute(
            INSERT_MESSAGE.format(p),
            ("orders", customer, "order.placed", "/shop", '{"shop":"python"}', payload.encode()),
        )

    def waiting(self):
        """Messages not yet published. (A status for people is `outbox-relay status`.)

        A message whose publish failed waits for its next attempt in `outbox_parked`; one statement counts
        both, because the relay moves rows from one table to the other.
        """
        count = self.execute(
            "SELECT (SELECT count(*) FROM outbox) + (SELECT count(*) FROM outbox_parked)"
        ).fetchone()[0]
        self.connection.commit()
        return count


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("database", help="postgres:// URL or path of a SQLite file")
    parser.add_argument("--orders", type=int, default=100, metavar="N", help="orders to place (default 100)")
    parser.add_argument(
        "--wait", type=float, default=0, metavar="SECONDS", help="wait until the relay has published everything"
    )
    arguments = parser.parse_args()

    shop = Shop(arguments.database)
    committed = rolled_back = 0
    for number in range(1, arguments.orders + 1):
        shop.place(CUSTOMERS[number % len(CUSTOMERS)], cents=100 * number)
        if number % ROLLED_BACK_EVERY == 0:
            shop.connection.rollback()
            rolled_back += 1
        else:
            shop.connection.commit()
            committed += 1

    deadline = time.monotonic() + arguments.wait
    while arguments.wait and shop.waiting():
        if time.monotonic() > deadline:
            print(f"the relay has not published everything within {arguments.wait} s", file=sys.stderr)
            return 1
        time.sleep(0.05)

    print(json.dumps({"committed": committed, "rolled_back": rolled_back, "waiting": shop.waiting()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
