BEGIN TRANSACTION;
CREATE TABLE auth_version (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT auth_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO "auth_version" VALUES('0001');
CREATE TABLE refresh_families (
	id VARCHAR(32) NOT NULL, 
	user_id VARCHAR(32) NOT NULL, 
	created_at BIGINT NOT NULL, 
	expires_at BIGINT NOT NULL, 
	PRIMARY KEY (id), 
	FOREIGN KEY(user_id) REFERENCES users (id) ON DELETE CASCADE
);
INSERT INTO "refresh_families" VALUES('cd165293318b4eb59b71a30ad8e2472d','93e2096454e843b6aa10b4e031024f93',1800000000000000,1802592000000000);
CREATE TABLE refresh_tokens (
	digest VARCHAR(64) NOT NULL, 
	family_id VARCHAR(32) NOT NULL, 
	expires_at BIGINT NOT NULL, 
	used_at BIGINT, 
	PRIMARY KEY (digest), 
	FOREIGN KEY(family_id) REFERENCES refresh_families (id) ON DELETE CASCADE
);
INSERT INTO "refresh_tokens" VALUES('f842a7e94af36459c53a8a0beb6a8a5ba0f87f80771fb0b80a26ed299b6e1f3c','cd165293318b4eb59b71a30ad8e2472d',1802592000000000,1800000000000000);
INSERT INTO "refresh_tokens" VALUES('9dc8301b83f615e84673a1ff838d6aa3a02b15386243a941456e1bd53351f52c','cd165293318b4eb59b71a30ad8e2472d',1802592000000000,NULL);
CREATE TABLE services (
	name VARCHAR(31) NOT NULL, 
	secret_digest VARCHAR(64) NOT NULL, 
	scopes TEXT NOT NULL, 
	created_at BIGINT NOT NULL, 
	PRIMARY KEY (name)
);
INSERT INTO "services" VALUES('chat','cb1be188f0eff278100d929fffc1ba65cfca4dbf76c04de11e2264b0f6448137','accounting:settle auth:read',1800000000000000);
CREATE TABLE signing_keys (
	kid VARCHAR(64) NOT NULL, 
	private_pem TEXT NOT NULL, 
	created_at BIGINT NOT NULL, 
	PRIMARY KEY (kid)
);
INSERT INTO "signing_keys" VALUES('WblM-udU3KfVJi1YljgQr0x3NPAheFNAn0pZQm6wDlA','-----BEGIN PRIVATE KEY-----
MC4CAQAwBQYDK2VwBCIEIFJTqIjT7qxt53AmMq+Mwm4ep8gPdeBMlGPMHIy5LvW6
-----END PRIVATE KEY-----
',1800000000000000);
CREATE TABLE users (
	id VARCHAR(32) NOT NULL, 
	username VARCHAR(30) NOT NULL, 
	username_key VARCHAR(30) NOT NULL, 
	email VARCHAR(254) NOT NULL, 
	email_key VARCHAR(254) NOT NULL, 
	password_hash TEXT NOT NULL, 
	role VARCHAR(16) NOT NULL, 
	is_verified BOOLEAN NOT NULL, 
	created_at BIGINT NOT NULL, 
	logged_in_at BIGINT, 
	PRIMARY KEY (id), 
	UNIQUE (username_key), 
	UNIQUE (email_key)
);
INSERT INTO "users" VALUES('3c5ccc6696414184965eac179e59e40d','admin','admin','admin@localhost','admin@localhost','$argon2id$v=19$m=8,t=1,p=1$6g9V+NCWzKb/+PIAm4JCWQ$oUYe887HddfnRfESH6PMXOb31cXQINZRCnWoo8y1n7Q','admin',1,1800000000000000,NULL);
INSERT INTO "users" VALUES('93e2096454e843b6aa10b4e031024f93','ann','ann','Ann@example.org','ann@example.org','$argon2id$v=19$m=8,t=1,p=1$dwBNkmwEwFc2qdA3uq4fkw$rYaJH4IY/O3plki10gAB8nXrLHSOuyPXbhpiV/IrC78','supervisor',0,1800000000000000,1800000000000000);
CREATE INDEX users_by_age ON users (created_at, id);
CREATE INDEX refresh_families_by_user ON refresh_families (user_id);
CREATE INDEX refresh_tokens_by_family ON refresh_tokens (family_id);
COMMIT;
