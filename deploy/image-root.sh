#!/bin/sh
# Collects the root file system of the container image in a new directory: the binary, the parts of
# the C library that it loads, the certificates of public authorities, the user, and what vulnerability
# scanners read. Debian's image with a C library (distroless/base) is larger than all of this.
#   deploy/image-root.sh BINARY DIRECTORY
# Needs Debian, binutils and ca-certificates, and libc6 and libgcc-s1 of the binary's architecture.
# Called by deploy/Dockerfile.
set -eu

binary=$1
root=$2

case $(readelf -h "$binary" | sed -n 's/ *Machine: *//p') in
*X86-64) machine=x86_64 architecture=amd64 ;;
AArch64) machine=aarch64 architecture=arm64 ;;
*)
    echo "$binary is built for neither amd64 nor arm64" >&2
    exit 1
    ;;
esac

mkdir "$root"
install -D -m 755 "$binary" "$root/usr/local/bin/status-indexer"
install -D -m 644 "${0%/*}/../LICENSE" "$root/usr/share/doc/status-indexer/LICENSE"

# The loader, at the path that is written in the binary, and the libraries, where the loader searches.
# The modules of the C library that resolve host names by /etc/hosts and DNS are parts of libc.so.6.
loader=$(readelf -lW "$binary" | sed -n 's/.*program interpreter: \(.*\)]/\1/p')
install -D -m 755 "$loader" "$root$loader"
readelf -dW "$binary" | sed -n 's/.*(NEEDED).*\[\(.*\)]/\1/p' | while read -r library; do
    case $library in
    ld-linux*) ;;
    *) install -D -m 644 "/lib/$machine-linux-gnu/$library" "$root/lib/$machine-linux-gnu/$library" ;;
    esac
done

install -D -m 644 /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/ca-certificates.crt"
echo "hosts: files dns" >"$root/etc/nsswitch.conf"
echo "nonroot:x:65532:65532:nonroot:/:/sbin/nologin" >"$root/etc/passwd"
echo "nonroot:x:65532:" >"$root/etc/group"

# Scanners find packages by these files, as in the distroless images; the licences belong to the copies.
install -D -m 644 /etc/os-release "$root/etc/os-release"
mkdir -p "$root/var/lib/dpkg/status.d"
for package in "libc6:$architecture" "libgcc-s1:$architecture" ca-certificates; do
    name=${package%:*}
    dpkg-query --status "$package" >"$root/var/lib/dpkg/status.d/$name"
    install -D -m 644 "/usr/share/doc/$name/copyright" "$root/usr/share/doc/$name/copyright"
done
