#!/bin/sh
# Run by PostgreSQL's container on its first start: a database and a user for each service, none of which sees another's.
# It has to be executable: what is not, that container reads into its own shell, which would end with the first unset name.
set -eu

for service in auth accounting chat; do
  password=$(cat "${SECRETS:-/run/secrets}/${service}_database_password")
  psql --quiet --no-psqlrc --set ON_ERROR_STOP=1 --username "${POSTGRES_USER:-postgres}" --dbname postgres \
    --set service="$service" --set password="$password" <<'SQL'
CREATE ROLE :"service" LOGIN PASSWORD :'password';
CREATE DATABASE :"service" OWNER :"service" ENCODING 'UTF8' TEMPLATE template0;
REVOKE ALL ON DATABASE :"service" FROM PUBLIC;
SQL
done
