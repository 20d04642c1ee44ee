-- Written by imprint: table vmq_auth_acl becomes the fleet. Run it with
--   psql --set ON_ERROR_STOP=1 --quiet --file vmq_auth_acl.sql DATABASE
-- It is one transaction: all of it, or nothing. Rows of others are deleted.
BEGIN;
SET LOCAL client_encoding = 'UTF8';
SET LOCAL standard_conforming_strings = on;
SET LOCAL client_min_messages = warning;
CREATE TABLE IF NOT EXISTS vmq_auth_acl (
  mountpoint character varying(10) NOT NULL,
  client_id character varying(128) NOT NULL,
  username character varying(128) NOT NULL,
  password character varying(128),
  publish_acl json,
  subscribe_acl json,
  CONSTRAINT vmq_auth_acl_primary_key PRIMARY KEY (mountpoint, client_id, username)
);
LOCK TABLE vmq_auth_acl IN SHARE ROW EXCLUSIVE MODE;
CREATE TEMPORARY TABLE imprint_fleet (
  id character varying(64) PRIMARY KEY,
  password character varying(128) NOT NULL,
  publish_acl text NOT NULL,
  subscribe_acl text NOT NULL
) ON COMMIT DROP;
INSERT INTO imprint_fleet VALUES ('dev-1', '$2a$04$abcdefghijklmnopqrstuujydOTSfIH/d5oUHpsygqV5X9xJLQc6e', '[{"pattern":"fleet/dev-1/up/#"},{"pattern":"fleet/dev-1/state"}]', '[{"pattern":"fleet/dev-1/down"},{"pattern":"fleet/dev-1/state"},{"pattern":"news/all"}]');
INSERT INTO imprint_fleet VALUES ('Dev-2', '$2a$04$abcdefghijklmnopqrstuuhfdSToe28Z2OzxmmHxfI3lnNDfjxoF6', '[{"pattern":"fleet/Dev-2/up/#"},{"pattern":"fleet/Dev-2/state"},{"pattern":"sites/berlin/valves/Dev-2"}]', '[{"pattern":"fleet/Dev-2/down"},{"pattern":"fleet/Dev-2/state"},{"pattern":"news/all"},{"pattern":"groups/hall/cmd/one"}]');
DELETE FROM vmq_auth_acl WHERE NOT EXISTS (
  SELECT 1 FROM imprint_fleet f
  WHERE vmq_auth_acl.mountpoint = '' AND vmq_auth_acl.client_id = f.id AND vmq_auth_acl.username = f.id);
INSERT INTO vmq_auth_acl (mountpoint, client_id, username, password, publish_acl, subscribe_acl)
  SELECT '', id, id, password, CAST(publish_acl AS json), CAST(subscribe_acl AS json) FROM imprint_fleet WHERE true
  ON CONFLICT (mountpoint, client_id, username) DO UPDATE
  SET password = excluded.password, publish_acl = excluded.publish_acl, subscribe_acl = excluded.subscribe_acl;
COMMIT;
