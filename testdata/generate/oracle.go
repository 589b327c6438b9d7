package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"

	"tidemark/pkg/wal"
)

// oracleSet is a directory of PostgreSQL's own tools: <major>/<tool>, or
// <major>/bin/<tool> as Debian installs them.
type oracleSet string

func (o oracleSet) tool(major int, name string) (string, bool) {
	for _, sub := range []string{"", "bin"} {
		path := filepath.Join(string(o), fmt.Sprint(major), sub, name)
		if _, err := os.Stat(path); err == nil {
			return path, true
		}
	}
	return "", false
}

func command(path string, args ...string) *exec.Cmd {
	cmd := exec.Command(path, args...)
	cmd.Env = append(os.Environ(), "TZ=UTC", "LC_ALL=C")
	return cmd
}

// controlData runs a pg_controldata that knows the control file's version.
func (o oracleSet) controlData(major int, data string) ([]byte, error) {
	candidates := []int{major}
	if major <= 16 { // one version of the file
		candidates = append(candidates, 15, 16, 14, 13)
	}
	for _, m := range candidates {
		if path, ok := o.tool(m, "pg_controldata"); ok {
			return command(path, data).Output()
		}
	}
	return nil, fmt.Errorf("no pg_controldata for PostgreSQL %d under %s", major, o)
}

type recordList struct {
	lines []string
	end   wal.LSN // of the last record's bytes, aligned
}

// records asks pg_waldump for every record of one timeline from start on.
func (o oracleSet) records(major int, dir string, tli wal.TimelineID, start wal.LSN) (recordList, error) {
	with := major
	path, ok := o.tool(with, "pg_waldump")
	for ; !ok && with > 13; path, ok = o.tool(with, "pg_waldump") {
		with--
	}
	if !ok {
		return recordList{}, fmt.Errorf("no pg_waldump for PostgreSQL %d under %s", major, o)
	}
	if with != major {
		patched, err := patchedCopy(dir, with)
		if err != nil {
			return recordList{}, err
		}
		defer os.RemoveAll(patched)
		dir = patched
	}
	cmd := command(path, "-p", dir, "-t", fmt.Sprint(uint32(tli)), "-s", start.String())
	var out, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &stderr
	_ = cmd.Run() // it always ends with an error: the log does not go on
	list, err := parseDump(out.String())
	if err != nil {
		return list, err
	}
	end := endMessage.FindStringSubmatch(stderr.String())
	if end == nil || len(list.lines) == 0 {
		return list, fmt.Errorf("pg_waldump ended with: %s", stderr.String())
	}
	list.end, err = wal.ParseLSN(end[1])
	return list, err
}

// patchedCopy copies the segments and gives their pages another version's magic.
func patchedCopy(dir string, major int) (string, error) {
	f, err := wal.FormatByMajor(major)
	if err != nil {
		return "", err
	}
	out, err := os.MkdirTemp("", "patched")
	if err != nil {
		return "", err
	}
	names, err := filepath.Glob(filepath.Join(dir, "0000000?????????????????"))
	if err != nil {
		return "", err
	}
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err != nil {
			return "", err
		}
		for at := 0; at < len(b); at += wal.DefaultPageSize {
			if binary.LittleEndian.Uint16(b[at:]) != 0 {
				binary.LittleEndian.PutUint16(b[at:], f.PageMagic)
			}
		}
		if err := os.WriteFile(filepath.Join(out, filepath.Base(name)), b, 0o600); err != nil {
			return "", err
		}
	}
	return out, nil
}

var (
	endMessage = regexp.MustCompile(`invalid record length at ([0-9A-F]+/[0-9A-F]+): (?:wanted|expected at least) 24, got 0`)
	dumpLine   = regexp.MustCompile(`^rmgr: (\S+) *len \(rec/tot\): *(\d+)/ *(\d+), tx: *(\d+), lsn: ([0-9A-F/]+), prev ([0-9A-F/]+), desc: (.*)$`)
	blockRef   = regexp.MustCompile(`,? ?blkref #(\d+): rel (\d+/\d+/\d+)(?: fork (\w+))? blk (\d+)( FPW)?( for WAL verification)?`)
)

// maxDescription cuts what pg_waldump says of a record; it prints whole messages.
const maxDescription = 1000

// parseDump turns pg_waldump's lines into ours: LSN, prev, xid, resource
// manager, length without images, total length, block references, description,
// with tabs between. A block reference is number:relation:block, with ":image"
// or ":check" when there is a page image.
func parseDump(text string) (list recordList, err error) {
	for _, line := range strings.Split(strings.TrimSpace(text), "\n") {
		m := dumpLine.FindStringSubmatch(line)
		if m == nil {
			if strings.HasPrefix(line, "rmgr:") {
				return list, fmt.Errorf("cannot read pg_waldump's line %q", line)
			}
			continue
		}
		desc := m[7]
		var refs []string
		for _, r := range blockRef.FindAllStringSubmatch(desc, -1) {
			rel, image := r[2], ""
			if r[3] != "" && r[3] != "main" {
				rel += "_" + r[3]
			}
			switch {
			case r[6] != "":
				image = ":check"
			case r[5] != "":
				image = ":image"
			}
			refs = append(refs, r[1]+":"+rel+":"+r[4]+image)
		}
		desc = strings.TrimSpace(blockRef.ReplaceAllString(desc, ""))
		desc = desc[:min(len(desc), maxDescription)]
		list.lines = append(list.lines, strings.Join([]string{m[5], m[6], m[4], m[1], m[2], m[3], strings.Join(refs, ","), desc}, "\t"))
	}
	return list, err
}
