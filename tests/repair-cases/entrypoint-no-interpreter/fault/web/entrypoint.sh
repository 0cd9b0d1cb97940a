# starts the service
set -e
echo starting
exec "$@"
