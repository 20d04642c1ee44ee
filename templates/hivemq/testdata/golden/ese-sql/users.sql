-- Written by imprint. Do not edit: the next export replaces it.
-- One transaction: psql needs no --single-transaction.
BEGIN;
CREATE TEMPORARY TABLE imprint_user (username text PRIMARY KEY, password text NOT NULL, salt text NOT NULL);
CREATE TEMPORARY TABLE imprint_rule (username text NOT NULL, topic text NOT NULL, publish boolean NOT NULL, subscribe boolean NOT NULL);
INSERT INTO imprint_user VALUES ('dev-1', '2KclV14a/MGhPi10IYXPvQdSm0ScwCwFIQv14vUTtewbmO0g7Shje6Qr8XUOEz4dRYhzQ+iyHnrzB6kVtYaOUA==', 'M05pbFNTY0I0b1ZI');
INSERT INTO imprint_rule VALUES ('dev-1', 'fleet/dev-1/up/#', TRUE, FALSE);
INSERT INTO imprint_rule VALUES ('dev-1', 'fleet/dev-1/down', FALSE, TRUE);
INSERT INTO imprint_rule VALUES ('dev-1', 'fleet/dev-1/state', TRUE, FALSE);
INSERT INTO imprint_rule VALUES ('dev-1', 'fleet/dev-1/state', FALSE, TRUE);
INSERT INTO imprint_rule VALUES ('dev-1', 'news/all', FALSE, TRUE);
INSERT INTO imprint_user VALUES ('Dev-2', 's5k7+7msyrEZ6DtqvvSubuMKJqJ9WDGdPth/LfbYcffCRFTZ+dnQNKqQYhuU+i5ieAPk8InnDlavm5Wiq0Qj1Q==', 'VlJtVVQ4MVdYd0NG');
INSERT INTO imprint_rule VALUES ('Dev-2', 'fleet/Dev-2/up/#', TRUE, FALSE);
INSERT INTO imprint_rule VALUES ('Dev-2', 'fleet/Dev-2/down', FALSE, TRUE);
INSERT INTO imprint_rule VALUES ('Dev-2', 'fleet/Dev-2/state', TRUE, FALSE);
INSERT INTO imprint_rule VALUES ('Dev-2', 'fleet/Dev-2/state', FALSE, TRUE);
INSERT INTO imprint_rule VALUES ('Dev-2', 'news/all', FALSE, TRUE);
INSERT INTO imprint_rule VALUES ('Dev-2', 'groups/hall/cmd/+', FALSE, TRUE);
INSERT INTO imprint_rule VALUES ('Dev-2', 'sites/berlin/valves/Dev-2', TRUE, FALSE);
-- An index for the key that points at permissions: without it each deletion reads all rows.
CREATE INDEX IF NOT EXISTS imprint_user_permissions ON user_permissions (permission);
CREATE INDEX IF NOT EXISTS imprint_role_permissions ON role_permissions (permission);
CREATE INDEX IF NOT EXISTS imprint_permissions ON permissions (topic);
ANALYZE imprint_user;
ANALYZE imprint_rule;
-- Who is kept by imprint has its role.
INSERT INTO roles (name, description) SELECT 'imprint', 'kept by imprint' WHERE NOT EXISTS (SELECT 1 FROM roles WHERE name = 'imprint');
CREATE TEMPORARY TABLE imprint_old (id integer PRIMARY KEY);
INSERT INTO imprint_old (id) SELECT u.user_id FROM user_roles u JOIN roles r ON r.id = u.role_id WHERE r.name = 'imprint';
-- Who is in the fleet is a user, with this password, and nobody else's any more.
UPDATE users SET
 password = (SELECT n.password FROM imprint_user n WHERE n.username = users.username),
 password_salt = (SELECT n.salt FROM imprint_user n WHERE n.username = users.username),
 password_iterations = 1, algorithm = 'SHA512'
 WHERE EXISTS (SELECT 1 FROM imprint_user n WHERE n.username = users.username
  AND (COALESCE(users.password, '') <> n.password OR users.password_salt <> n.salt OR users.password_iterations <> 1 OR users.algorithm <> 'SHA512'));
INSERT INTO users (username, password, password_iterations, password_salt, algorithm)
 SELECT n.username, n.password, 1, n.salt, 'SHA512' FROM imprint_user n WHERE NOT EXISTS (SELECT 1 FROM users u WHERE u.username = n.username);
INSERT INTO imprint_old (id) SELECT u.id FROM users u JOIN imprint_user n ON n.username = u.username
 WHERE NOT EXISTS (SELECT 1 FROM imprint_old o WHERE o.id = u.id);
ANALYZE imprint_old;
-- The rights that there should be.
INSERT INTO permissions (topic, publish_allowed, subscribe_allowed, qos_0_allowed, qos_1_allowed, qos_2_allowed, retained_msgs_allowed, shared_sub_allowed, shared_group)
 SELECT DISTINCT r.topic, r.publish, r.subscribe, TRUE, TRUE, TRUE, TRUE, FALSE, 'imprint' FROM imprint_rule r
 WHERE NOT EXISTS (SELECT 1 FROM permissions p WHERE p.topic = r.topic AND p.publish_allowed = r.publish AND p.subscribe_allowed = r.subscribe
  AND p.qos_0_allowed AND p.qos_1_allowed AND p.qos_2_allowed AND p.retained_msgs_allowed AND NOT p.shared_sub_allowed AND p.shared_group = 'imprint');
CREATE TEMPORARY TABLE imprint_want (user_id integer NOT NULL, permission integer NOT NULL, PRIMARY KEY (user_id, permission));
INSERT INTO imprint_want (user_id, permission)
 SELECT DISTINCT u.id, p.id FROM imprint_rule r JOIN users u ON u.username = r.username
 JOIN permissions p ON p.topic = r.topic AND p.publish_allowed = r.publish AND p.subscribe_allowed = r.subscribe
  AND p.qos_0_allowed AND p.qos_1_allowed AND p.qos_2_allowed AND p.retained_msgs_allowed AND NOT p.shared_sub_allowed AND p.shared_group = 'imprint';
ANALYZE imprint_want;
-- What was and should not be is gone: rights, the role, users.
CREATE TEMPORARY TABLE imprint_gone (id integer PRIMARY KEY);
INSERT INTO imprint_gone (id) SELECT DISTINCT x.permission FROM user_permissions x JOIN imprint_old o ON o.id = x.user_id
 WHERE NOT EXISTS (SELECT 1 FROM imprint_want w WHERE w.user_id = x.user_id AND w.permission = x.permission);
DELETE FROM user_permissions WHERE user_id IN (SELECT id FROM imprint_old)
 AND NOT EXISTS (SELECT 1 FROM imprint_want w WHERE w.user_id = user_permissions.user_id AND w.permission = user_permissions.permission);
INSERT INTO user_permissions (user_id, permission) SELECT w.user_id, w.permission FROM imprint_want w
 WHERE NOT EXISTS (SELECT 1 FROM user_permissions x WHERE x.user_id = w.user_id AND x.permission = w.permission);
DELETE FROM permissions WHERE id IN (SELECT id FROM imprint_gone)
 AND NOT EXISTS (SELECT 1 FROM user_permissions x WHERE x.permission = permissions.id)
 AND NOT EXISTS (SELECT 1 FROM role_permissions x WHERE x.permission = permissions.id);
DELETE FROM user_roles WHERE user_id IN (SELECT id FROM imprint_old);
INSERT INTO user_roles (user_id, role_id) SELECT u.id, r.id FROM users u JOIN imprint_user n ON n.username = u.username JOIN roles r ON r.name = 'imprint';
DELETE FROM users WHERE id IN (SELECT id FROM imprint_old) AND NOT EXISTS (SELECT 1 FROM imprint_user n WHERE n.username = users.username);
DROP TABLE imprint_gone;
DROP TABLE imprint_want;
DROP TABLE imprint_old;
DROP TABLE imprint_rule;
DROP TABLE imprint_user;
COMMIT;
