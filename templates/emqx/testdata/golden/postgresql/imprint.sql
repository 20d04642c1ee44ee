-- Written by imprint: the tables imprint_emqx_user and imprint_emqx_acl become the
-- fleet. Run it with
--   psql --set ON_ERROR_STOP=1 --quiet --file imprint.sql DATABASE
-- It is one transaction: all of it, or nothing. Rows of others are deleted.
BEGIN;
SET LOCAL client_encoding = 'UTF8';
SET LOCAL standard_conforming_strings = on;
SET LOCAL client_min_messages = warning;
CREATE TABLE IF NOT EXISTS imprint_emqx_user (
  username character varying(64) PRIMARY KEY,
  password_hash character varying(64),
  salt character varying(128)
);
CREATE TABLE IF NOT EXISTS imprint_emqx_acl (
  username character varying(64) NOT NULL,
  prio integer NOT NULL,
  permission character varying(5) NOT NULL,
  action character varying(9) NOT NULL,
  topic text NOT NULL,
  PRIMARY KEY (username, prio)
);
LOCK TABLE imprint_emqx_user, imprint_emqx_acl IN SHARE ROW EXCLUSIVE MODE;
CREATE TEMPORARY TABLE imprint_new_user (
  username character varying(64) PRIMARY KEY,
  password_hash character varying(64),
  salt character varying(128)
) ON COMMIT DROP;
CREATE TEMPORARY TABLE imprint_new_acl (
  username character varying(64) NOT NULL,
  prio integer NOT NULL,
  permission character varying(5) NOT NULL,
  action character varying(9) NOT NULL,
  topic text NOT NULL,
  PRIMARY KEY (username, prio)
) ON COMMIT DROP;
INSERT INTO imprint_new_user VALUES ('dev-1', 'd32d4c44019dfbf0403bb75fb3d194d34dcc01f8f73efda048c502b8d282543b', '3NilSScB4oVH'); INSERT INTO imprint_new_acl VALUES ('dev-1', 0, 'allow', 'publish', 'fleet/dev-1/up/#'), ('dev-1', 1, 'allow', 'publish', 'fleet/dev-1/state'), ('dev-1', 2, 'allow', 'subscribe', 'fleet/dev-1/down'), ('dev-1', 3, 'allow', 'subscribe', 'fleet/dev-1/state'), ('dev-1', 4, 'allow', 'subscribe', 'news/all');
INSERT INTO imprint_new_user VALUES ('Dev-2', '82ecb7f2f7f456252ae4d977f2a6f8cb34c256cf14d9dfd9debb0d270636f10a', 'VRmUT81WXwCF'); INSERT INTO imprint_new_acl VALUES ('Dev-2', 0, 'allow', 'publish', 'fleet/Dev-2/up/#'), ('Dev-2', 1, 'allow', 'publish', 'fleet/Dev-2/state'), ('Dev-2', 2, 'allow', 'publish', 'sites/berlin/valves/Dev-2'), ('Dev-2', 3, 'allow', 'subscribe', 'fleet/Dev-2/down'), ('Dev-2', 4, 'allow', 'subscribe', 'fleet/Dev-2/state'), ('Dev-2', 5, 'allow', 'subscribe', 'news/all'), ('Dev-2', 6, 'deny', 'subscribe', 'eq groups/hall/cmd/#'), ('Dev-2', 7, 'allow', 'subscribe', 'groups/hall/cmd/+');
INSERT INTO imprint_new_user VALUES ('dev-3', NULL, NULL); INSERT INTO imprint_new_acl VALUES ('dev-3', 0, 'allow', 'publish', 'fleet/dev-3/up/#'), ('dev-3', 1, 'allow', 'publish', 'fleet/dev-3/state'), ('dev-3', 2, 'allow', 'publish', 'sites/rome/valves/dev-3'), ('dev-3', 3, 'allow', 'subscribe', 'fleet/dev-3/down'), ('dev-3', 4, 'allow', 'subscribe', 'fleet/dev-3/state'), ('dev-3', 5, 'allow', 'subscribe', 'news/all'), ('dev-3', 6, 'deny', 'subscribe', 'eq groups/yard/cmd/#'), ('dev-3', 7, 'allow', 'subscribe', 'groups/yard/cmd/+');
DELETE FROM imprint_emqx_user WHERE NOT EXISTS (
  SELECT 1 FROM imprint_new_user n WHERE n.username = imprint_emqx_user.username);
DELETE FROM imprint_emqx_acl WHERE NOT EXISTS (
  SELECT 1 FROM imprint_new_acl n WHERE n.username = imprint_emqx_acl.username AND n.prio = imprint_emqx_acl.prio);
INSERT INTO imprint_emqx_user (username, password_hash, salt)
  SELECT username, password_hash, salt FROM imprint_new_user WHERE true
  ON CONFLICT (username) DO UPDATE
  SET password_hash = excluded.password_hash, salt = excluded.salt;
INSERT INTO imprint_emqx_acl (username, prio, permission, action, topic)
  SELECT username, prio, permission, action, topic FROM imprint_new_acl WHERE true
  ON CONFLICT (username, prio) DO UPDATE
  SET permission = excluded.permission, action = excluded.action, topic = excluded.topic;
COMMIT;
