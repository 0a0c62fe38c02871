#!/bin/sh
# Makes the secrets of compose.yaml in the folder secrets beside this file, once: what is there stays as it is.
# An API key of the model's server goes into secrets/openai_api_key afterwards, if there is one.
set -eu
umask 077
cd "$(dirname "$0")"
mkdir -p secrets
cd secrets

# Whoever may enter the folder may read them; the users of the containers, who may not, get each by itself.
keep() {
  [ -e "$1" ] || { cat > ".$1" && chmod 0444 ".$1" && mv ".$1" "$1"; }
}

random() {
  od -An -N32 -tx1 /dev/urandom | tr -d ' \n'
}

for name in admin_password postgres_password accounting_service_secret chat_service_secret valkey_password metrics_token; do
  random | keep "$name"
done
for service in auth accounting chat; do
  random | keep "${service}_database_password"
  printf 'postgresql://%s:%s@postgres/%s' "$service" "$(cat "${service}_database_password")" "$service" |
    keep "${service}_database_url"
done
printf 'valkey://parshall:%s@valkey:6379/0' "$(cat valkey_password)" | keep stream_log_url
keep valkey_users << EOT
user default off
user health on >health resetkeys resetchannels -@all +ping
user parshall on >$(cat valkey_password) ~parshall:* &parshall:* +@read +@write +@scripting +@pubsub +@connection +info +cluster
EOT
printf 'none' | keep openai_api_key
echo "The secrets are in $(pwd); the password of the user admin is in admin_password."
