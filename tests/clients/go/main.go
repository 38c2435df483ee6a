// The Go client: Go's own resolver, static (CGO_ENABLED=0), raw system calls.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"
)

const connects = 20

var resolver = &net.Resolver{PreferGo: true}

func main() {
	out := map[string]any{"client": "go"}
	names, url, refused, many := os.Args[1], os.Args[2], os.Args[3], os.Args[4]
	if names != "-" {
		found := map[string][]string{}
		for _, name := range strings.Split(names, ",") {
			found[name] = lookUp(name)
		}
		out["names"] = found
	}
	if url != "-" {
		out["http"] = fetch(url)
	}
	if refused != "-" {
		out["refused"] = errnoOf(refused)
	}
	if many != "-" {
		out["connects_ms"] = connectMany(many)
	}
	json.NewEncoder(os.Stdout).Encode(out)
}

func lookUp(name string) []string {
	ctx := context.Background()
	var found []string
	var err error
	if record, ok := strings.CutPrefix(name, "srv:"); ok {
		var records []*net.SRV
		_, records, err = resolver.LookupSRV(ctx, "", "", record)
		for _, r := range records {
			found = append(found, strings.TrimSuffix(r.Target, ".")+":"+itoa(int(r.Port)))
		}
	} else if address, ok := strings.CutPrefix(name, "ptr:"); ok {
		found, err = resolver.LookupAddr(ctx, address)
		for i := range found {
			found[i] = strings.TrimSuffix(found[i], ".")
		}
	} else {
		found, err = resolver.LookupHost(ctx, name)
	}
	var dns *net.DNSError
	switch {
	case errors.As(err, &dns) && dns.IsNotFound:
		return []string{"!NXDOMAIN"}
	case err != nil:
		return []string{"!" + err.Error()}
	}
	return found
}

func itoa(n int) string {
	b, _ := json.Marshal(n)
	return string(b)
}

func fetch(url string) string {
	client := http.Client{Timeout: 20 * time.Second}
	resp, err := client.Get(url)
	if err != nil {
		return "!" + err.Error()
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	return strings.SplitN(string(body), "\n", 2)[0]
}

func errnoOf(address string) string {
	conn, err := net.DialTimeout("tcp", address, 20*time.Second)
	if err == nil {
		conn.Close()
		return "connected"
	}
	if errors.Is(err, syscall.ECONNREFUSED) {
		return "ECONNREFUSED"
	}
	return err.Error()
}

func connectMany(address string) float64 {
	started := time.Now()
	var all sync.WaitGroup
	failed := make(chan error, connects)
	for range connects {
		all.Go(func() {
			conn, err := net.DialTimeout("tcp", address, 20*time.Second)
			if err != nil {
				failed <- err
				return
			}
			defer conn.Close()
		})
	}
	all.Wait()
	select {
	case <-failed:
		return -1
	default:
		return float64(time.Since(started).Microseconds()) / 1000
	}
}
