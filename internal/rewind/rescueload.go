package rewind

import (
	"bufio"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"strings"

	"tidemark/internal/postgres"
)

// rescueSchema is where the loader puts the rows.
const rescueSchema = "tidemark_rescue"

// stagingName is the name of the table for a file: "public.orders inserted".
func stagingName(schema, table, change string) string {
	const most = 63 // bytes in a name
	name := schema + "." + table + " " + change
	if len(name) > most {
		name = fmt.Sprintf("%s-%08x %s", strings.ToValidUTF8(name[:most-len(change)-10], ""), crc32.ChecksumIEEE([]byte(name)), change)
	}
	return name
}

// writeLoader writes the script for psql that loads the files. It makes tables
// of its own and leaves the others alone: what becomes of the rows is for
// people to decide, who see both there.
func (res *RescueResult) writeLoader() (err error) {
	res.Script = filepath.Join(res.Dir, rescueLoader)
	f, err := os.OpenFile(res.Script, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	w := bufio.NewWriter(f)
	fmt.Fprintf(w, loaderHead, rescueSchema, scriptText(res.Dir))
	database := ""
	for _, t := range res.Tables {
		if t.Database != database {
			if database != "" {
				fmt.Fprintln(w, "COMMIT;")
			}
			database = t.Database
			fmt.Fprintf(w, "\n\\connect -reuse-previous=on %s\nSET client_encoding = 'UTF8';\n", connectArg(database))
			fmt.Fprintf(w, "SELECT set_config('client_encoding', 'SQL_ASCII', false) FROM pg_settings WHERE name = 'server_encoding' AND setting = 'SQL_ASCII';\n")
			fmt.Fprintf(w, "BEGIN;\nCREATE SCHEMA IF NOT EXISTS %s;\n", rescueSchema)
		}
		for _, file := range t.Files {
			writeStaging(w, file)
		}
	}
	if database != "" {
		fmt.Fprintln(w, "COMMIT;")
	}
	for _, s := range res.Sequences {
		fmt.Fprintf(w, "\n-- database %s: SELECT setval(%s, %d, %v);", oneLine(s.Database), oneLine(postgres.QuoteLiteral(qualified(s.Schema, s.Name))), s.Last, s.Called)
	}
	fmt.Fprintln(w)
	return w.Flush()
}

const loaderHead = `-- Loads rows that a rewind discarded into tables of the schema %s,
-- one for each file, beside the tables that they belong to. Nothing else changes.
--
--   psql -X -f load.sql                     on the new primary
--   psql -X -v dir=/elsewhere -f load.sql   where the files lie elsewhere now
\set ON_ERROR_STOP on
\if :{?dir}
\else
\set dir %s
\endif
\cd :dir
SET client_min_messages = warning;
`

func writeStaging(w *bufio.Writer, f RescuedFile) {
	name := qualified(rescueSchema, f.Staging)
	var columns, names []string
	for _, c := range f.Columns {
		columns = append(columns, postgres.QuoteIdent(c.Name)+" "+c.Type)
		names = append(names, postgres.QuoteIdent(c.Name))
	}
	fmt.Fprintf(w, "\nCREATE TABLE %s (%s);\n", name, strings.Join(columns, ", "))
	list := ""
	if len(names) > 0 {
		list = " (" + strings.Join(names, ", ") + ")"
	}
	fmt.Fprintf(w, "\\copy %s%s from %s\n", name, oneLine(list), scriptText(f.Path))
}

// scriptText quotes a word for a command of psql's.
func scriptText(s string) string {
	return "'" + strings.NewReplacer(`\`, `\\`, "'", `\'`, "\n", `\n`).Replace(s) + "'"
}

// connectArg names a database so that no name is taken for a connection string.
func connectArg(database string) string {
	value := strings.NewReplacer(`\`, `\\`, "'", `\'`).Replace(database)
	return `"dbname='` + strings.ReplaceAll(value, `"`, `""`) + `'"`
}

// oneLine keeps a comment or a command of psql's on its line.
func oneLine(s string) string { return strings.NewReplacer("\n", " ", "\r", " ").Replace(s) }
