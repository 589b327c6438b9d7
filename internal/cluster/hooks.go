package cluster

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"tidemark/internal/exit"
)

// Hooks are the operator's own commands around a promotion. They are run by
// /bin/sh with these variables set:
//
//	TIDEMARK_CLUSTER      the cluster's name
//	TIDEMARK_OPERATION    switchover or promote
//	TIDEMARK_OLD_PRIMARY  the old primary's name, empty where there is none
//	TIDEMARK_NEW_PRIMARY  the name of the node that is promoted
//	TIDEMARK_NEW_CONNINFO its connection string, as configured
//
// BeforePromote fences the old primary; where it fails nothing is promoted.
// AfterPromote moves addresses and poolers; where it fails the promotion
// stands and the step remains to be done.
type Hooks struct {
	BeforePromote string
	AfterPromote  string
}

func (c *Cluster) runHook(ctx context.Context, name, command string, r *Report) error {
	cmd := exec.CommandContext(ctx, "/bin/sh", "-c", command)
	conninfo := ""
	if n, err := c.node(r.Node); err == nil {
		conninfo = n.Conninfo
	}
	cmd.Env = append(os.Environ(), "TIDEMARK_CLUSTER="+c.opt.Name, "TIDEMARK_OPERATION="+r.Operation,
		"TIDEMARK_OLD_PRIMARY="+r.Old, "TIDEMARK_NEW_PRIMARY="+r.Node, "TIDEMARK_NEW_CONNINFO="+conninfo)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	text := strings.TrimSpace(out.String())
	if err == nil {
		if text != "" {
			c.opt.Progress.Note("%s: %s", name, text)
		}
		return nil
	}
	if text != "" {
		text = ": " + text
	}
	return exit.Wrap(err, exit.Failed, fmt.Sprintf("the command is set as %s in tidemark.toml", name), "the hook %s (%s) failed%s", name, command, text)
}
