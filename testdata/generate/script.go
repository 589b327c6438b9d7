package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"

	"tidemark/bench/scratch"
)

// runScript runs a workload file. It returns an error for the first statement
// that fails without leave.
func runScript(ctx context.Context, s *scratch.Server, script string) error {
	return s.With(ctx, func(c *pgx.Conn) error {
		for _, st := range parseScript(strings.ReplaceAll(script, "DIR", s.Dir)) {
			if s.Major < st.from || st.to != 0 && s.Major > st.to {
				continue
			}
			_, err := c.Exec(ctx, st.sql)
			if err != nil && !st.mayFail {
				return fmt.Errorf("%s: %w", st.sql, err)
			}
		}
		return nil
	})
}

type statement struct {
	sql      string
	from, to int
	mayFail  bool
}

func parseScript(script string) (list []statement) {
	var st statement
	for _, line := range strings.Split(script, "\n") {
		directive, isComment := strings.CutPrefix(line, "-- ")
		switch {
		case isComment && strings.HasPrefix(directive, "from "):
			st.from, _ = strconv.Atoi(directive[5:])
		case isComment && strings.HasPrefix(directive, "to "):
			st.to, _ = strconv.Atoi(directive[3:])
		case directive == "may fail":
			st.mayFail = true
		case isComment || strings.HasPrefix(line, "--") || line == "":
		default:
			st.sql += line + "\n"
			if strings.HasSuffix(line, ";") {
				list = append(list, st)
				st = statement{}
			}
		}
	}
	return list
}
