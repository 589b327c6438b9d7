package repo_test

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"tidemark/internal/exit"
	"tidemark/internal/repo"
	"tidemark/internal/repo/storetest"
)

// TestS3TLS: a server with a certificate of its own is trusted where ca= or
// AWS_CA_BUNDLE names it, and nowhere else.
func TestS3TLS(t *testing.T) {
	s := storetest.NewS3TLS(t)
	at := s.Location("tls", "ca="+s.CA)
	r, _, err := repo.Init(t.Context(), at)
	if err != nil {
		t.Fatal(err)
	}
	tr := smallTree(rand.New(rand.NewPCG(36, 1)))
	b := backup(t, r.Cluster(testSystem), tr, "")
	mustRestore(t, r.Cluster(testSystem), b.ID, tr)

	bare := s.Location("tls", "attempts=1")
	if _, err := repo.Open(t.Context(), bare); err == nil || !strings.Contains(err.Error()+exit.HintOf(err), "ca=FILE") {
		t.Errorf("without the certificate: %v", err)
	}
	other := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(other, []byte("no certificate"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{other, other + ".missing"} {
		if _, err := repo.Open(t.Context(), s.Location("tls", "ca="+file)); err == nil || !strings.Contains(err.Error(), filepath.Base(file)) {
			t.Errorf("%s: %v", filepath.Base(file), err)
		}
	}
	t.Setenv("AWS_CA_BUNDLE", s.CA)
	if _, err := repo.Open(t.Context(), bare); err != nil {
		t.Errorf("by AWS_CA_BUNDLE: %v", err)
	}
}
