// Command generate writes testdata/ anew: WAL segments and control files that
// real servers of every major version wrote, and next to them what PostgreSQL's
// own tools say they hold.
//
//	go run ./testdata/generate -oracles DIR
//
// DIR holds a directory per major version with its pg_waldump and
// pg_controldata ($TIDEMARK_ORACLES). Where a major has no pg_waldump there,
// the next older one reads a copy of the WAL whose page magic is its own: the
// structure of records changed in 14 and 15 only, and the part that did in 14
// is left out of 14's workload. Where it has no pg_controldata, the one of the
// same control file version is taken. From 15 on, what pkg/wal reads of the
// workload is also compared with the server's own pg_walinspect.
package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"os"
	"strconv"
	"strings"
)

func main() {
	log.SetFlags(0)
	oracles := flag.String("oracles", os.Getenv("TIDEMARK_ORACLES"), "directory with <major>/pg_waldump and <major>/pg_controldata")
	majors := flag.String("majors", "13,14,15,16,17,18", "major versions to run")
	out := flag.String("out", "testdata", "directory to write")
	flag.Parse()
	if *oracles == "" {
		*oracles = "/usr/lib/postgresql"
	}
	for _, m := range strings.Split(*majors, ",") {
		major, err := strconv.Atoi(m)
		if err == nil {
			err = generate(context.Background(), major, *out, oracleSet(*oracles))
		}
		if err != nil {
			log.Fatalf("fixture of PostgreSQL %s: %v", m, err)
		}
		fmt.Printf("PostgreSQL %d: done\n", major)
	}
}
