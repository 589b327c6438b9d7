package repo_test

import (
	"strings"
	"testing"

	"tidemark/internal/exit"
	"tidemark/internal/repo"
)

func TestParseLocation(t *testing.T) {
	for _, env := range []string{"AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_REGION", "AWS_DEFAULT_REGION"} {
		t.Setenv(env, "")
	}
	for text, want := range map[string]string{
		"/srv/backup":             "/srv/backup",
		"backup dir":              "backup dir",
		"file:///srv/backup":      "/srv/backup",
		"s3://bucket":             "s3://bucket",
		"s3://bucket/a/b/":        "s3://bucket/a/b/",
		"sftp://u@h:22/srv/x":     "sftp://u@h:22/srv/x",
		"sftp://h/~/x?attempts=3": "sftp://h/~/x?attempts=3",
		"s3://b/p?endpoint=http://h:1&region=r&path-style=false&lock=governance&lock-days=30": "s3://b/p?endpoint=http://h:1&region=r&path-style=false&lock=governance&lock-days=30",
	} {
		l, err := repo.ParseLocation(text)
		if err != nil || l.String() != want {
			t.Errorf("%s: %q, %v", text, l, err)
			continue
		}
		if again, err := repo.ParseLocation(l.String()); err != nil || again.String() != l.String() {
			t.Errorf("%s: read again: %q, %v", text, again, err)
		}
	}
	l, err := repo.ParseLocation("s3://b/p/q?endpoint=h:9000&lock=compliance&lock-days=7&timeout=5s")
	if err != nil {
		t.Fatal(err)
	}
	if o := l.S3; o.Bucket != "b" || o.Prefix != "p/q/" || o.Endpoint != "https://h:9000" || !o.PathStyle || o.LockMode != "compliance" || o.LockDays != 7 || o.Timeout.Seconds() != 5 {
		t.Errorf("%+v", o)
	}
	if l, err = repo.ParseLocation("sftp://u@[::1]:2222/~/x/y"); err != nil {
		t.Fatal(err)
	}
	if o := l.SFTP; o.User != "u" || o.Host != "::1" || o.Port != 2222 || o.Root != "x/y" {
		t.Errorf("%+v", o)
	}
}

// TestLocationFromEnvironment: what the environment says becomes part of the
// location, for the server reads it in another environment.
func TestLocationFromEnvironment(t *testing.T) {
	t.Setenv("AWS_ENDPOINT_URL_S3", "https://s3.example.com:8443")
	t.Setenv("AWS_REGION", "north")
	l, err := repo.ParseLocation("s3://b/p")
	if want := "s3://b/p?endpoint=https://s3.example.com%3A8443&region=north"; err != nil || l.String() != want {
		t.Errorf("%q, %v", l, err)
	}
	if l, err = repo.ParseLocation("s3://b/p?region=south&endpoint=https://h"); err != nil || l.String() != "s3://b/p?region=south&endpoint=https://h" {
		t.Errorf("%q, %v", l, err)
	}
}

func TestParseLocationErrors(t *testing.T) {
	for text, want := range map[string]string{
		"":                               "--repo",
		"ftp://h/x":                      "s3://BUCKET",
		"s3://":                          "no bucket",
		"s3://key:TOPSECRET@bucket/x":    "AWS_ACCESS_KEY_ID",
		"sftp://u:TOPSECRET@h/x":         "use a key",
		"s3://b/p?endpont=http://h":      "endpoint",
		"s3://b/p?region=a&region=b":     "twice",
		"s3://b/a b":                     "prefix",
		"s3://b/../x":                    "prefix",
		"s3://b?endpoint=ftp://h":        "endpoint=https",
		"s3://b?endpoint=http://k:s@h":   "endpoint=https",
		"s3://b?lock=maybe&lock-days=3":  "lock=governance",
		"s3://b?lock=governance":         "lock-days",
		"s3://b?lock-days=0":             "number",
		"s3://b?path-style=perhaps":      "true or false",
		"s3://b?timeout=-3s":             "time",
		"sftp://h":                       "directory",
		"sftp://h/":                      "directory",
		"sftp://-oProxyCommand=x/y":      "host",
		"sftp://-l@h/y":                  "host",
		"sftp://h:0/y":                   "port",
		"sftp://h/y#z":                   "%23",
		"sftp://h/%zz":                   "sftp://USER",
		"sftp://u:TOPSECRET@h/%zz":       "sftp://USER",
		"sftp://h/y?endpoint=http://h:1": "known are",
	} {
		_, err := repo.ParseLocation(text)
		if exit.CodeOf(err) != exit.Usage {
			t.Errorf("%s: %v", text, err)
			continue
		}
		all := err.Error() + "\n" + exit.HintOf(err)
		if !strings.Contains(all, want) || strings.Contains(all, "TOPSECRET") {
			t.Errorf("%s: %s, want %q", text, all, want)
		}
	}
}
