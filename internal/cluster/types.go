package cluster

import "context"

// A Rewinder takes back what a node alone has, so that it can follow the
// source. The target is stopped. A role
// change is given one by its caller: this package knows nothing of how it is done.
type Rewinder func(ctx context.Context, target, source Node) error

// A Seeder copies the source into the target's data directory, which is empty
// or missing, or holds what an earlier call left unfinished. The slot, which is
// there, keeps the WAL that the copy needs.
type Seeder func(ctx context.Context, target, source Node, slot string) error
