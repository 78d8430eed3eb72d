-- A ledger of the first schema, with an hour, a day and a month of two tenants. Never changed: it
-- stands for the files that older releases have written.
CREATE TABLE meta (key TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE sources (
  id INTEGER PRIMARY KEY, gateway TEXT NOT NULL, source TEXT NOT NULL,
  first_s INTEGER NOT NULL, last_s INTEGER NOT NULL, UNIQUE (gateway, source));
CREATE TABLE plans (
  id INTEGER PRIMARY KEY, tier TEXT NOT NULL, price_cents INTEGER NOT NULL,
  limits TEXT NOT NULL, UNIQUE (tier, limits));
CREATE TABLE tenants (
  id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, plan INTEGER NOT NULL);
CREATE TABLE hours (
  hour INTEGER NOT NULL, tenant INTEGER NOT NULL, source INTEGER NOT NULL,
  reads INTEGER NOT NULL, writes INTEGER NOT NULL, refused INTEGER NOT NULL,
  s0 INTEGER NOT NULL, s1 INTEGER NOT NULL, s2 INTEGER NOT NULL,
  s3 INTEGER NOT NULL, s4 INTEGER NOT NULL, s5 INTEGER NOT NULL,
  bytes_in INTEGER NOT NULL, bytes_out INTEGER NOT NULL, service_ms INTEGER NOT NULL,
  doze INTEGER NOT NULL, start INTEGER NOT NULL, "create" INTEGER NOT NULL, reasons TEXT,
  PRIMARY KEY (hour, tenant, source)) WITHOUT ROWID;
CREATE TABLE days (
  day INTEGER NOT NULL, tenant INTEGER NOT NULL,
  reads INTEGER NOT NULL, writes INTEGER NOT NULL, refused INTEGER NOT NULL,
  s0 INTEGER NOT NULL, s1 INTEGER NOT NULL, s2 INTEGER NOT NULL,
  s3 INTEGER NOT NULL, s4 INTEGER NOT NULL, s5 INTEGER NOT NULL,
  bytes_in INTEGER NOT NULL, bytes_out INTEGER NOT NULL, service_ms INTEGER NOT NULL,
  doze INTEGER NOT NULL, start INTEGER NOT NULL, "create" INTEGER NOT NULL, reasons TEXT,
  PRIMARY KEY (day, tenant)) WITHOUT ROWID;
CREATE TABLE months (
  month INTEGER NOT NULL, tenant INTEGER NOT NULL,
  reads INTEGER NOT NULL, writes INTEGER NOT NULL, refused INTEGER NOT NULL,
  s0 INTEGER NOT NULL, s1 INTEGER NOT NULL, s2 INTEGER NOT NULL,
  s3 INTEGER NOT NULL, s4 INTEGER NOT NULL, s5 INTEGER NOT NULL,
  bytes_in INTEGER NOT NULL, bytes_out INTEGER NOT NULL, service_ms INTEGER NOT NULL,
  doze INTEGER NOT NULL, start INTEGER NOT NULL, "create" INTEGER NOT NULL, reasons TEXT,
  PRIMARY KEY (month, tenant)) WITHOUT ROWID;
INSERT INTO meta VALUES ('pruned_hour', 499000);
INSERT INTO sources VALUES (1, 'gw', 'a', 1799990000, 1799999000), (2, 'gw', 'b', 1799990000, 1799999000);
INSERT INTO plans VALUES (1, 'free', 0, '{}'), (2, 'pro', 1900, '{"price_cents_month":1900}');
INSERT INTO tenants VALUES (1, 'alice', 2), (2, 'bob', 1);
INSERT INTO hours VALUES
  (500000, 1, 1, 5, 2, 3, 0, 0, 7, 0, 3, 0, 50, 70, 9, 1, 0, 0, '{"rate-limited":3}'),
  (500000, 1, 2, 4, 0, 0, 0, 0, 4, 0, 0, 0, 40, 40, 4, 0, 0, 0, NULL),
  (500000, 2, 1, 1, 0, 0, 0, 0, 1, 0, 0, 0, 10, 10, 1, 0, 1, 0, NULL);
INSERT INTO days VALUES (20700, 1, 100, 0, 0, 0, 0, 100, 0, 0, 0, 0, 0, 0, 0, 0, 0, NULL);
INSERT INTO months VALUES (24240, 2, 1000, 0, 0, 0, 0, 1000, 0, 0, 0, 0, 0, 0, 0, 0, 0, NULL);
PRAGMA user_version = 1;
