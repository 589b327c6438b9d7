// Command basebackup takes base backups as pg_basebackup -Ft -X fetch does, with
// the same commands of the replication protocol, and of 17 and later
// incremental ones. bench/backup runs it where a server is installed without
// its pg_basebackup:
//
//	basebackup -d CONNINFO -D DIR [-incremental MANIFEST] [-compress none|zstd] [-manifest-only]
//
// It writes DIR/base.tar, or base.tar.zst, an archive of each tablespace, and
// DIR/backup_manifest, and syncs them. Archives are compressed at zstd's level 3,
// as by --compress=client-zstd:3, by the zstd program where there is one. It is there to be timed: nothing
// that it writes is verified.
package main

import (
	"context"
	"flag"
	"log"
	"os"
)

func main() {
	log.SetFlags(0)
	var o options
	flag.StringVar(&o.conninfo, "d", "", "the server")
	flag.StringVar(&o.dir, "D", "", "where the archives go; made here")
	flag.StringVar(&o.since, "incremental", "", "manifest of the previous backup")
	flag.StringVar(&o.compress, "compress", "none", "none or zstd")
	flag.BoolVar(&o.manifestOnly, "manifest-only", false, "receive everything and keep the manifest")
	flag.Parse()
	if o.dir == "" || o.compress != "none" && o.compress != "zstd" {
		flag.Usage()
		os.Exit(2)
	}
	if err := take(context.Background(), o); err != nil {
		log.Fatal(err)
	}
}
