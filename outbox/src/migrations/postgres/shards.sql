-- Divides an empty outbox into {shards} shards, each with its own sequence.
BEGIN;
LOCK TABLE outbox, outbox_parked IN ACCESS EXCLUSIVE MODE;
-- Runs as its owner, so that producers need no right on the sequences. The default of xid came first: the
-- transaction has its id before it takes a position.
CREATE OR REPLACE FUNCTION outbox_position() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
  NEW.id := pg_catalog.nextval(
    pg_catalog.format('%I.outbox_position_%s', TG_TABLE_SCHEMA, NEW.shard)::pg_catalog.regclass);
  RETURN NEW;
END $$;
DO $$
DECLARE
  last bigint := 0;
  known regclass;
BEGIN
  IF EXISTS (SELECT FROM outbox) OR EXISTS (SELECT FROM outbox_parked) THEN
    RAISE EXCEPTION 'the outbox is not empty and keys may change their shard; stop the producers and let the relays drain it';
  END IF;
  IF pg_get_serial_sequence('outbox', 'id') IS NOT NULL THEN
    last := coalesce(pg_sequence_last_value(pg_get_serial_sequence('outbox', 'id')), 0);
  END IF;
  FOR shard IN 0 .. {shards} - 1 LOOP
    known := to_regclass('outbox_position_' || shard);
    IF known IS NULL THEN
      EXECUTE format('CREATE SEQUENCE outbox_position_%s START WITH %s CACHE 1', shard, last + 1);
    END IF;
  END LOOP;
END $$;
ALTER TABLE outbox ALTER COLUMN id DROP IDENTITY IF EXISTS;
DROP TRIGGER IF EXISTS outbox_position ON outbox;
CREATE TRIGGER outbox_position BEFORE INSERT ON outbox FOR EACH ROW EXECUTE FUNCTION outbox_position();
DELETE FROM outbox_lease WHERE shard >= {shards};
INSERT INTO outbox_lease (shard) SELECT generate_series(0, {shards} - 1) ON CONFLICT DO NOTHING;
COMMIT;
