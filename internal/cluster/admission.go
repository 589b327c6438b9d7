package cluster

import (
	"context"
	"fmt"

	"tidemark/internal/postgres"
)

// checkAdmission knocks at the candidate as each follower will: a replication
// session with the follower's future primary_conninfo.
func (c *Cluster) checkAdmission(ctx context.Context, next *Facts, followers, all []*Facts) []Check {
	var l checklist
	for _, f := range followers {
		detail, err := "may replicate from "+next.Name, c.knock(ctx, next, f, all)
		if err != nil {
			detail = firstLine(err.Error())
		}
		l.add("admission", f.Name, err == nil, detail, fmt.Sprintf("let %s replicate from %s: pg_hba.conf there, role and password", f.Name, next.Name))
	}
	return l
}

func (c *Cluster) knock(ctx context.Context, next, f *Facts, all []*Facts) error {
	info, err := followConnInfo(next, f, all)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, c.opt.ConnectTimeout, fmt.Errorf("no answer within %s", c.opt.ConnectTimeout))
	defer cancel()
	conn, err := postgres.ConnectReplication(ctx, info)
	if err != nil {
		return err
	}
	defer conn.Close()
	system, err := conn.IdentifySystem(ctx)
	if err == nil && system.ID != next.SystemID {
		err = fmt.Errorf("that way leads to another cluster (%d)", system.ID)
	}
	return err
}
