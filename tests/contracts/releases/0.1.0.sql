BEGIN TRANSACTION;
CREATE TABLE accounting_version (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT accounting_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO "accounting_version" VALUES('0001');
CREATE TABLE accounts (
	id VARCHAR(255) NOT NULL, 
	available BIGINT NOT NULL, 
	reserved BIGINT NOT NULL, 
	created_at BIGINT NOT NULL, 
	PRIMARY KEY (id), 
	CONSTRAINT accounts_available CHECK (available >= 0), 
	CONSTRAINT accounts_reserved CHECK (reserved >= 0)
);
INSERT INTO "accounts" VALUES('ann',3296,130,1800000000000000);
INSERT INTO "accounts" VALUES('bob',60,0,1800000000000000);
INSERT INTO "accounts" VALUES('eve',168,232,1800000074000000);
CREATE TABLE grants (
	id VARCHAR(32) NOT NULL, 
	account_id VARCHAR(255) NOT NULL, 
	amount BIGINT NOT NULL, 
	remaining BIGINT NOT NULL, 
	expires_at BIGINT NOT NULL, 
	priority INTEGER NOT NULL, 
	created_at BIGINT NOT NULL, 
	granted_by VARCHAR(255) NOT NULL, 
	notes TEXT NOT NULL, 
	PRIMARY KEY (id), 
	CONSTRAINT grants_remaining CHECK (remaining >= 0 AND remaining <= amount), 
	FOREIGN KEY(account_id) REFERENCES accounts (id)
);
INSERT INTO "grants" VALUES('3f30ea4da2604494af02baee524548f8','ann',3000,2771,1800086400000000,0,1800000000000000,'root','für ‘dich’');
INSERT INTO "grants" VALUES('9b4d8942681747589725dcc47a6c8ada','ann',100,0,1800000040000000,0,1800000000000000,'root','für ‘dich’');
INSERT INTO "grants" VALUES('039de87f66a546c1ae0f03c92307a5cf','ann',500,500,1800086400000000,1,1800000000000000,'root','für ‘dich’');
INSERT INTO "grants" VALUES('10f357f1946d4a6ba12ce4819c41a650','bob',150,0,1800086400000000,0,1800000000000000,'root','für ‘dich’');
INSERT INTO "grants" VALUES('101782d97d954cfcb23e48cf6f9d2589','eve',400,168,1800086474000000,0,1800000074000000,'root','corrected');
INSERT INTO "grants" VALUES('743c8b46b02f49c3bd5b59d5657a40e0','ann',25,25,1800086400000000,0,1800000074000000,'root','');
INSERT INTO "grants" VALUES('fc7537d4604c4b00bcfe4d5c532430d5','bob',60,60,1800000098000000,0,1800000078000000,'root','für ‘dich’');
CREATE TABLE idempotency (
	scope VARCHAR(320) NOT NULL, 
	"key" VARCHAR(255) NOT NULL, 
	hash VARCHAR(64) NOT NULL, 
	status INTEGER NOT NULL, 
	body TEXT NOT NULL, 
	created_at BIGINT NOT NULL, 
	PRIMARY KEY (scope, "key")
);
INSERT INTO "idempotency" VALUES('allocate:root','k1','951b8107607fc3bd42e55a3406860d3f8d1b75d7d90788be587c1d30c02b8577',201,'{"grantId": "743c8b46b02f49c3bd5b59d5657a40e0"}',1800000074000000);
CREATE TABLE prices (
	version VARCHAR(320) NOT NULL, 
	model_id VARCHAR(255) NOT NULL, 
	effective_from BIGINT NOT NULL, 
	input BIGINT NOT NULL, 
	cached_input BIGINT NOT NULL, 
	output BIGINT NOT NULL, 
	reasoning BIGINT NOT NULL, 
	set_by VARCHAR(255) NOT NULL, 
	PRIMARY KEY (version), 
	CONSTRAINT prices_effective UNIQUE (model_id, effective_from)
);
INSERT INTO "prices" VALUES('*@1970-01-01T00:00:00.000000Z','*',0,1000000000,500000000,4000000000,4000000000,'default');
INSERT INTO "prices" VALUES('smollm2-135m@1970-01-01T00:00:00.000000Z','smollm2-135m',0,100000000,50000000,400000000,400000000,'default');
INSERT INTO "prices" VALUES('any@2027-01-15T08:00:00.000000Z','any',1800000000000000,1000000,500000,2000000,3000000,'root');
INSERT INTO "prices" VALUES('any@2027-01-15T08:01:15.000000Z','any',1800000075000000,2000000,1000000,4000000,4000000,'root');
CREATE TABLE reservation_parts (
	reservation_id VARCHAR(64) NOT NULL, 
	position INTEGER NOT NULL, 
	grant_id VARCHAR(32) NOT NULL, 
	amount BIGINT NOT NULL, 
	PRIMARY KEY (reservation_id, position), 
	CONSTRAINT reservation_parts_amount CHECK (amount > 0), 
	FOREIGN KEY(reservation_id) REFERENCES reservations (id), 
	FOREIGN KEY(grant_id) REFERENCES grants (id)
);
INSERT INTO "reservation_parts" VALUES('stream-1800000000-00000001',0,'9b4d8942681747589725dcc47a6c8ada',100);
INSERT INTO "reservation_parts" VALUES('stream-1800000000-00000001',1,'3f30ea4da2604494af02baee524548f8',90);
INSERT INTO "reservation_parts" VALUES('stream-1800000000-00000002',0,'9b4d8942681747589725dcc47a6c8ada',29);
INSERT INTO "reservation_parts" VALUES('stream-1800000000-00000002',1,'3f30ea4da2604494af02baee524548f8',59);
INSERT INTO "reservation_parts" VALUES('stream-1800000000-00000003',0,'10f357f1946d4a6ba12ce4819c41a650',150);
INSERT INTO "reservation_parts" VALUES('stream-1800000000-00000004',0,'3f30ea4da2604494af02baee524548f8',70);
INSERT INTO "reservation_parts" VALUES('stream-1800000000-00000005',0,'3f30ea4da2604494af02baee524548f8',130);
INSERT INTO "reservation_parts" VALUES('stream-1800000000-00000006',0,'3f30ea4da2604494af02baee524548f8',92);
INSERT INTO "reservation_parts" VALUES('stream-1800000000-00000007',0,'3f30ea4da2604494af02baee524548f8',130);
INSERT INTO "reservation_parts" VALUES('stream-1800000000-00000008',0,'101782d97d954cfcb23e48cf6f9d2589',86);
INSERT INTO "reservation_parts" VALUES('stream-1800000000-00000009',0,'101782d97d954cfcb23e48cf6f9d2589',60);
INSERT INTO "reservation_parts" VALUES('stream-1800000000-0000000a',0,'101782d97d954cfcb23e48cf6f9d2589',86);
CREATE TABLE reservations (
	id VARCHAR(64) NOT NULL, 
	account_id VARCHAR(255) NOT NULL, 
	model_id VARCHAR(255) NOT NULL, 
	price_version VARCHAR(320) NOT NULL, 
	state VARCHAR(16) NOT NULL, 
	reserved BIGINT NOT NULL, 
	input_tokens BIGINT NOT NULL, 
	output_tokens BIGINT NOT NULL, 
	output_tokens_max BIGINT NOT NULL, 
	step INTEGER NOT NULL, 
	created_at BIGINT NOT NULL, 
	expires_at BIGINT NOT NULL, 
	ended_at BIGINT, 
	used_input_tokens BIGINT, 
	used_cached_input_tokens BIGINT, 
	used_output_tokens BIGINT, 
	used_reasoning_tokens BIGINT, 
	usage_source VARCHAR(16), 
	end_hash VARCHAR(64), 
	settlement TEXT, 
	PRIMARY KEY (id), 
	FOREIGN KEY(account_id) REFERENCES accounts (id), 
	FOREIGN KEY(price_version) REFERENCES prices (version)
);
INSERT INTO "reservations" VALUES('stream-1800000000-00000001','ann','any','any@2027-01-15T08:00:00.000000Z','settled',190,10,60,100,2,1800000000000000,1800000032000000,1800000003000000,10,5,30,3,'provider','207027fedb394351c21e5a74bb21f07de8475d23d13721a1672cff5d53303d32','{"outcome":"completed","reserved":190,"charged":71,"returned":119,"uncollected":0,"balance_after":3529,"price_version":"any@2027-01-15T08:00:00.000000Z","transfers":[9,10,11]}');
INSERT INTO "reservations" VALUES('stream-1800000000-00000002','ann','any','any@2027-01-15T08:00:00.000000Z','settled',88,10,20,100,0,1800000004000000,1800000034000000,1800000005000000,10,5,40,0,'provider','f416eb621d09e47e3e46fa93313b8379700fe87ecdf1d514dc4fb24b040a20dd','{"outcome":"completed","reserved":88,"charged":88,"returned":0,"uncollected":0,"balance_after":3441,"price_version":"any@2027-01-15T08:00:00.000000Z","transfers":[14,15,16,17]}');
INSERT INTO "reservations" VALUES('stream-1800000000-00000003','bob','any','any@2027-01-15T08:00:00.000000Z','settled',150,10,20,500,0,1800000006000000,1800000036000000,1800000007000000,10,5,100,0,'provider','61c0e09d2ff444479aaf4ca50041b6b523247ec234760638a1c4220b5d0f2017','{"outcome":"completed","reserved":150,"charged":150,"returned":0,"uncollected":58,"balance_after":0,"price_version":"any@2027-01-15T08:00:00.000000Z","transfers":[19,20,21,22]}');
INSERT INTO "reservations" VALUES('stream-1800000000-00000004','ann','any','any@2027-01-15T08:00:00.000000Z','voided',70,10,20,100,0,1800000008000000,1800000038000000,1800000009000000,NULL,NULL,NULL,NULL,NULL,NULL,'{"outcome":"voided","reserved":70,"charged":0,"returned":70,"uncollected":0,"balance_after":3441,"price_version":"any@2027-01-15T08:00:00.000000Z","transfers":[24]}');
INSERT INTO "reservations" VALUES('stream-1800000000-00000005','ann','any','any@2027-01-15T08:00:00.000000Z','expired',130,10,40,100,0,1800000009000000,1800000039000000,1800000041000000,NULL,NULL,NULL,NULL,NULL,NULL,'{"outcome":"expired","reserved":130,"charged":0,"returned":130,"uncollected":0,"balance_after":3441,"price_version":"any@2027-01-15T08:00:00.000000Z","transfers":[26]}');
INSERT INTO "reservations" VALUES('stream-1800000000-00000006','ann','any','any@2027-01-15T08:00:00.000000Z','expired',92,10,20,100,0,1800000041000000,1800000071000000,1800000073000000,10,5,7,0,'provider','67166084e5923679117a17685df123ec881a7fdc0e609856e8c3bffef9ce069a','{"outcome":"completed","reserved":92,"charged":22,"returned":70,"uncollected":0,"balance_after":3419,"price_version":"any@2027-01-15T08:00:00.000000Z","transfers":[29,30]}');
INSERT INTO "reservations" VALUES('stream-1800000000-00000007','ann','any','any@2027-01-15T08:00:00.000000Z','active',130,10,40,100,1,1800000074000000,1800000105000000,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "reservations" VALUES('stream-1800000000-00000008','eve','any','any@2027-01-15T08:01:15.000000Z','active',86,3,20,100,0,1800000076000000,1800000106000000,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "reservations" VALUES('stream-1800000000-00000009','eve','any','any@2027-01-15T08:01:15.000000Z','active',60,0,15,15,0,1800000077000000,1800000107000000,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "reservations" VALUES('stream-1800000000-0000000a','eve','any','any@2027-01-15T08:01:15.000000Z','active',86,3,20,100,0,1800000077000000,1800000107000000,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
CREATE TABLE slices (
	reservation_id VARCHAR(64) NOT NULL, 
	step INTEGER NOT NULL, 
	hash VARCHAR(64) NOT NULL, 
	reserved BIGINT NOT NULL, 
	output_tokens BIGINT NOT NULL, 
	expires_at BIGINT NOT NULL, 
	final INTEGER NOT NULL, 
	PRIMARY KEY (reservation_id, step), 
	FOREIGN KEY(reservation_id) REFERENCES reservations (id)
);
INSERT INTO "slices" VALUES('stream-1800000000-00000001',0,'79d8dc39f20fd5ac2b6871871f4bff8115ac1120c8ae4089afff3fdf5f2d55b5',70,20,1800000030000000,0);
INSERT INTO "slices" VALUES('stream-1800000000-00000001',1,'d61ac57789672703644f45246703b82e2bbbf15dd01acacba9167593325bcae8',130,40,1800000031000000,0);
INSERT INTO "slices" VALUES('stream-1800000000-00000001',2,'d61ac57789672703644f45246703b82e2bbbf15dd01acacba9167593325bcae8',190,60,1800000032000000,0);
INSERT INTO "slices" VALUES('stream-1800000000-00000002',0,'2e209753927893d1759bbac96c38d5aa7f1e916abddb25529b8aede2c7cc1c70',70,20,1800000034000000,0);
INSERT INTO "slices" VALUES('stream-1800000000-00000003',0,'be68abe9935af90429d6bb7efa152b672bc138a1c6a3747f8a6345b037653db0',70,20,1800000036000000,0);
INSERT INTO "slices" VALUES('stream-1800000000-00000004',0,'63fc77458037ebcf0663fba3556462725d9dcec65176412e4e29ffa212ce9fd2',70,20,1800000038000000,0);
INSERT INTO "slices" VALUES('stream-1800000000-00000005',0,'1a2365d0fdcdd946c532e518c633a76d530945eba11ec15725e414f3df7d2d4e',130,40,1800000039000000,0);
INSERT INTO "slices" VALUES('stream-1800000000-00000006',0,'1d078a09828798db9210b93fa4f97368c64174b778144012101f4f3abb1cf4f1',70,20,1800000071000000,0);
INSERT INTO "slices" VALUES('stream-1800000000-00000007',0,'19c9e891a750960394e678e87240103f96ee2c2b67f877b436024f5a1fe0be54',70,20,1800000104000000,0);
INSERT INTO "slices" VALUES('stream-1800000000-00000007',1,'d61ac57789672703644f45246703b82e2bbbf15dd01acacba9167593325bcae8',130,40,1800000105000000,0);
INSERT INTO "slices" VALUES('stream-1800000000-00000008',0,'14d8fdd81867ba667424124fd6934764a985716d6e82ba76052960d56bf637af',86,20,1800000106000000,0);
INSERT INTO "slices" VALUES('stream-1800000000-00000009',0,'d06e17ec458420400ee47b015dfb5b6e6dbcc4c4eea3630be8e77c32d49e7ba2',60,15,1800000107000000,1);
INSERT INTO "slices" VALUES('stream-1800000000-0000000a',0,'2b94b5052d0ff2f0b0376b4f218315256a4b0fa8542b050ea1c5173b70b76e5f',86,20,1800000107000000,0);
CREATE TABLE transfers (
	id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, 
	account_id VARCHAR(255) NOT NULL, 
	grant_id VARCHAR(32), 
	kind VARCHAR(16) NOT NULL, 
	amount BIGINT NOT NULL, 
	debit VARCHAR(16) NOT NULL, 
	credit VARCHAR(16) NOT NULL, 
	reservation_id VARCHAR(64), 
	at BIGINT NOT NULL, 
	available_after BIGINT NOT NULL, 
	note TEXT NOT NULL, 
	CONSTRAINT transfers_amount CHECK (amount > 0), 
	FOREIGN KEY(account_id) REFERENCES accounts (id), 
	FOREIGN KEY(grant_id) REFERENCES grants (id)
);
INSERT INTO "transfers" VALUES(1,'ann','3f30ea4da2604494af02baee524548f8','grant',3000,'issued','available',NULL,1800000000000000,3000,'für ‘dich’');
INSERT INTO "transfers" VALUES(2,'ann','9b4d8942681747589725dcc47a6c8ada','grant',100,'issued','available',NULL,1800000000000000,3100,'für ‘dich’');
INSERT INTO "transfers" VALUES(3,'ann','039de87f66a546c1ae0f03c92307a5cf','grant',500,'issued','available',NULL,1800000000000000,3600,'für ‘dich’');
INSERT INTO "transfers" VALUES(4,'bob','10f357f1946d4a6ba12ce4819c41a650','grant',150,'issued','available',NULL,1800000000000000,150,'für ‘dich’');
INSERT INTO "transfers" VALUES(5,'ann','9b4d8942681747589725dcc47a6c8ada','reserve',70,'available','reserved','stream-1800000000-00000001',1800000000000000,3530,'');
INSERT INTO "transfers" VALUES(6,'ann','9b4d8942681747589725dcc47a6c8ada','reserve',30,'available','reserved','stream-1800000000-00000001',1800000001000000,3500,'');
INSERT INTO "transfers" VALUES(7,'ann','3f30ea4da2604494af02baee524548f8','reserve',30,'available','reserved','stream-1800000000-00000001',1800000001000000,3470,'');
INSERT INTO "transfers" VALUES(8,'ann','3f30ea4da2604494af02baee524548f8','reserve',60,'available','reserved','stream-1800000000-00000001',1800000002000000,3410,'');
INSERT INTO "transfers" VALUES(9,'ann','9b4d8942681747589725dcc47a6c8ada','charge',71,'reserved','revenue','stream-1800000000-00000001',1800000003000000,3410,'');
INSERT INTO "transfers" VALUES(10,'ann','9b4d8942681747589725dcc47a6c8ada','release',29,'reserved','available','stream-1800000000-00000001',1800000003000000,3439,'');
INSERT INTO "transfers" VALUES(11,'ann','3f30ea4da2604494af02baee524548f8','release',90,'reserved','available','stream-1800000000-00000001',1800000003000000,3529,'');
INSERT INTO "transfers" VALUES(12,'ann','9b4d8942681747589725dcc47a6c8ada','reserve',29,'available','reserved','stream-1800000000-00000002',1800000004000000,3500,'');
INSERT INTO "transfers" VALUES(13,'ann','3f30ea4da2604494af02baee524548f8','reserve',41,'available','reserved','stream-1800000000-00000002',1800000004000000,3459,'');
INSERT INTO "transfers" VALUES(14,'ann','3f30ea4da2604494af02baee524548f8','reserve',18,'available','reserved','stream-1800000000-00000002',1800000005000000,3441,'');
INSERT INTO "transfers" VALUES(15,'ann','9b4d8942681747589725dcc47a6c8ada','charge',29,'reserved','revenue','stream-1800000000-00000002',1800000005000000,3441,'');
INSERT INTO "transfers" VALUES(16,'ann','3f30ea4da2604494af02baee524548f8','charge',41,'reserved','revenue','stream-1800000000-00000002',1800000005000000,3441,'');
INSERT INTO "transfers" VALUES(17,'ann','3f30ea4da2604494af02baee524548f8','charge',18,'reserved','revenue','stream-1800000000-00000002',1800000005000000,3441,'');
INSERT INTO "transfers" VALUES(18,'bob','10f357f1946d4a6ba12ce4819c41a650','reserve',70,'available','reserved','stream-1800000000-00000003',1800000006000000,80,'');
INSERT INTO "transfers" VALUES(19,'bob','10f357f1946d4a6ba12ce4819c41a650','reserve',80,'available','reserved','stream-1800000000-00000003',1800000007000000,0,'');
INSERT INTO "transfers" VALUES(20,'bob','10f357f1946d4a6ba12ce4819c41a650','charge',70,'reserved','revenue','stream-1800000000-00000003',1800000007000000,0,'');
INSERT INTO "transfers" VALUES(21,'bob','10f357f1946d4a6ba12ce4819c41a650','charge',80,'reserved','revenue','stream-1800000000-00000003',1800000007000000,0,'');
INSERT INTO "transfers" VALUES(22,'bob',NULL,'uncollected',58,'uncollected','revenue','stream-1800000000-00000003',1800000007000000,0,'');
INSERT INTO "transfers" VALUES(23,'ann','3f30ea4da2604494af02baee524548f8','reserve',70,'available','reserved','stream-1800000000-00000004',1800000008000000,3371,'');
INSERT INTO "transfers" VALUES(24,'ann','3f30ea4da2604494af02baee524548f8','release',70,'reserved','available','stream-1800000000-00000004',1800000009000000,3441,'');
INSERT INTO "transfers" VALUES(25,'ann','3f30ea4da2604494af02baee524548f8','reserve',130,'available','reserved','stream-1800000000-00000005',1800000009000000,3311,'');
INSERT INTO "transfers" VALUES(26,'ann','3f30ea4da2604494af02baee524548f8','release',130,'reserved','available','stream-1800000000-00000005',1800000041000000,3441,'');
INSERT INTO "transfers" VALUES(27,'ann','3f30ea4da2604494af02baee524548f8','reserve',70,'available','reserved','stream-1800000000-00000006',1800000041000000,3371,'');
INSERT INTO "transfers" VALUES(28,'ann','3f30ea4da2604494af02baee524548f8','release',70,'reserved','available','stream-1800000000-00000006',1800000073000000,3441,'');
INSERT INTO "transfers" VALUES(29,'ann','3f30ea4da2604494af02baee524548f8','reserve',22,'available','reserved','stream-1800000000-00000006',1800000073000000,3419,'');
INSERT INTO "transfers" VALUES(30,'ann','3f30ea4da2604494af02baee524548f8','charge',22,'reserved','revenue','stream-1800000000-00000006',1800000073000000,3419,'');
INSERT INTO "transfers" VALUES(31,'ann','3f30ea4da2604494af02baee524548f8','charge',11,'available','revenue',NULL,1800000074000000,3408,'an image');
INSERT INTO "transfers" VALUES(32,'ann','3f30ea4da2604494af02baee524548f8','revoke',7,'available','issued',NULL,1800000074000000,3401,'root: corrected');
INSERT INTO "transfers" VALUES(33,'eve','101782d97d954cfcb23e48cf6f9d2589','grant',400,'issued','available',NULL,1800000074000000,400,'corrected');
INSERT INTO "transfers" VALUES(34,'ann','743c8b46b02f49c3bd5b59d5657a40e0','grant',25,'issued','available',NULL,1800000074000000,3426,'');
INSERT INTO "transfers" VALUES(35,'ann','3f30ea4da2604494af02baee524548f8','reserve',70,'available','reserved','stream-1800000000-00000007',1800000074000000,3356,'');
INSERT INTO "transfers" VALUES(36,'ann','3f30ea4da2604494af02baee524548f8','reserve',60,'available','reserved','stream-1800000000-00000007',1800000075000000,3296,'');
INSERT INTO "transfers" VALUES(37,'eve','101782d97d954cfcb23e48cf6f9d2589','reserve',86,'available','reserved','stream-1800000000-00000008',1800000076000000,314,'');
INSERT INTO "transfers" VALUES(38,'eve','101782d97d954cfcb23e48cf6f9d2589','reserve',60,'available','reserved','stream-1800000000-00000009',1800000077000000,254,'');
INSERT INTO "transfers" VALUES(39,'eve','101782d97d954cfcb23e48cf6f9d2589','reserve',86,'available','reserved','stream-1800000000-0000000a',1800000077000000,168,'');
INSERT INTO "transfers" VALUES(40,'bob','fc7537d4604c4b00bcfe4d5c532430d5','grant',60,'issued','available',NULL,1800000078000000,60,'für ‘dich’');
CREATE INDEX grants_held ON grants (account_id) WHERE remaining > 0;
CREATE INDEX grants_due ON grants (expires_at) WHERE remaining > 0;
CREATE INDEX grants_created ON grants (created_at, id);
CREATE INDEX reservations_due ON reservations (expires_at) WHERE state = 'active';
CREATE INDEX reservations_of ON reservations (account_id, created_at);
CREATE INDEX reservations_created ON reservations (created_at);
CREATE INDEX transfers_of ON transfers (account_id, id);
CREATE INDEX transfers_for ON transfers (reservation_id);
CREATE TRIGGER transfers_no_update BEFORE UPDATE ON transfers BEGIN SELECT RAISE(ABORT, 'transfers are append-only'); END;
CREATE TRIGGER transfers_no_delete BEFORE DELETE ON transfers BEGIN SELECT RAISE(ABORT, 'transfers are append-only'); END;
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('transfers',40);
COMMIT;
