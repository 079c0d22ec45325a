# Builds the packages as another machine would: as an unprivileged user who may read everything, in another folder on
# another file system (whose folders list their files in another order), with another clock, host name, umask, language
# and time zone. Run by test_debs.py in its own mount and UTS namespaces: nothing of it outlives the run.
#   sh another_machine.sh CHECKOUT EMPTY_FOLDER TARGET_FOLDER
set -eu
checkout=$1 scratch=$2 target=$3
mkdir "$scratch/etc" "$scratch/tmpfs"
chmod 0777 "$target"

mount -t tmpfs -o mode=0755 tmpfs "$scratch/tmpfs"
tree=$scratch/tmpfs/a-longer-name-than-the-first
git clone --quiet --shared "$checkout" "$tree"
mkdir "$tree/build"
ln -s "$checkout/.venv" "$tree/.venv"
ln -s "$checkout/build/wheels" "$tree/build/wheels"
find "$tree" -exec touch --no-dereference --date=2001-02-03 {} +
chown -R nobody:nogroup "$scratch" "$tree"

# The build hands its steps an environment of its own, so a clock in a variable would not reach them.
library=$(dpkg --listfiles libfaketime | grep '/libfaketime\.so\.1$')
echo "$library" >"$scratch/preload"
echo +400d >"$scratch/etc/faketimerc"
: >"$scratch/etc/ld.so.preload"
ln -s /usr/share/zoneinfo/Pacific/Kiritimati "$scratch/etc/localtime"
mount -t overlay -o "lowerdir=$scratch/etc:/etc" overlay /etc
hostname elsewhere
umask 0077

# setpriv must not have the false clock: it leaves a semaphore of root's, which the user who comes after may not open.
# The gate opens once the user's shell reads from it.
mkfifo "$scratch/gate"
chown nobody "$scratch/gate"
setpriv --reuid=nobody --regid=nogroup --clear-groups \
    --inh-caps=-all,+dac_read_search --ambient-caps=-all,+dac_read_search \
    env -i PATH=/usr/bin:/bin HOME="$scratch" TZ=Pacific/Kiritimati LANG=de_DE.UTF-8 LC_ALL=C PYTHONHASHSEED=7 \
    sh -euc 'read -r _ <"$1/gate"; [ "$(date +%Y%m)" -gt "$4" ]; exec "$2/packaging/build" --fast --dist "$3"' \
    sh "$scratch" "$tree" "$target" "$(date +%Y%m)" &
exec 3>"$scratch/gate"
mount --bind "$scratch/preload" /etc/ld.so.preload
echo open >&3
exec 3>&-
wait $!
