# Runs users.sql files in the tables of the Enterprise Security Extension, as its
# manual has them, and prints what is there then.
import json
import sqlite3
import sys

db = sqlite3.connect(":memory:", isolation_level=None)
db.executescript("""
PRAGMA foreign_keys = ON;
CREATE TABLE users (id INTEGER PRIMARY KEY, username text NOT NULL UNIQUE, password text, password_iterations integer NOT NULL, password_salt text NOT NULL, algorithm text NOT NULL);
CREATE TABLE roles (id INTEGER PRIMARY KEY, name text NOT NULL UNIQUE, description text);
CREATE TABLE user_roles (user_id integer NOT NULL REFERENCES users (id), role_id integer NOT NULL REFERENCES roles (id), PRIMARY KEY (user_id, role_id));
CREATE TABLE permissions (id INTEGER PRIMARY KEY, topic text NOT NULL, publish_allowed boolean NOT NULL DEFAULT FALSE, subscribe_allowed boolean NOT NULL DEFAULT FALSE,
 qos_0_allowed boolean NOT NULL DEFAULT FALSE, qos_1_allowed boolean NOT NULL DEFAULT FALSE, qos_2_allowed boolean NOT NULL DEFAULT FALSE,
 retained_msgs_allowed boolean NOT NULL DEFAULT FALSE, shared_sub_allowed boolean NOT NULL DEFAULT FALSE, shared_group text);
CREATE TABLE role_permissions (role integer NOT NULL REFERENCES roles (id), permission integer NOT NULL REFERENCES permissions (id), PRIMARY KEY (role, permission));
CREATE TABLE user_permissions (user_id integer NOT NULL REFERENCES users (id), permission integer NOT NULL REFERENCES permissions (id), PRIMARY KEY (user_id, permission));
INSERT INTO users VALUES (1, 'admin', 'x', 1, 'x', 'SHA512');
INSERT INTO permissions VALUES (1, '#', TRUE, TRUE, TRUE, TRUE, TRUE, TRUE, FALSE, 'imprint');
INSERT INTO user_permissions VALUES (1, 1);
""")
for name in sys.argv[1:]:
    with open(name, encoding="utf-8") as f:
        db.executescript(f.read())
users = {r[0]: r[1:] for r in db.execute("SELECT username, password, password_iterations, password_salt, algorithm FROM users")}
rights = [
    {"User": r[0], "Topic": r[1], "Publish": bool(r[2]), "Subscribe": bool(r[3])}
    for r in db.execute("SELECT u.username, p.topic, p.publish_allowed, p.subscribe_allowed FROM users u JOIN user_permissions x ON x.user_id = u.id JOIN permissions p ON p.id = x.permission")
]
rest = {
    "orphans": db.execute("SELECT COUNT(*) FROM permissions WHERE id NOT IN (SELECT permission FROM user_permissions)").fetchone()[0],
    "temporary": db.execute("SELECT COUNT(*) FROM sqlite_temp_master WHERE name NOT LIKE 'sqlite_%'").fetchone()[0],
}
json.dump({"Users": users, "Rights": rights, "Rest": rest}, sys.stdout)
