package main

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// retry: a call succeeds although the server is killed. The service config retries it, and the request id makes that
// safe.
func (s *scenario) retry(ctx context.Context) (string, error) {
	pid, err := userServicePID()
	if err != nil {
		return "", err
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		return "", fmt.Errorf("failed to kill user-service, process %d: %w", pid, err)
	}
	started := time.Now()
	created, err := s.users.CreateUser(ctx, newUser())
	if err != nil {
		return "", err
	}
	took := time.Since(started).Round(time.Millisecond)
	return fmt.Sprintf("user %s, %v after the kill", created.GetUser().GetUserId(), took), nil
}

// userServicePID prefers ENDPOINTS_FILE, which is updated after a restart of the service.
func userServicePID() (int, error) {
	value := os.Getenv("USER_SERVICE_PID")
	if text, err := os.ReadFile(os.Getenv("ENDPOINTS_FILE")); err == nil {
		for line := range strings.Lines(string(text)) {
			if pid, found := strings.CutPrefix(line, "USER_SERVICE_PID="); found {
				value = strings.TrimSpace(pid)
			}
		}
	}
	if value == "" {
		return 0, fmt.Errorf("%w: USER_SERVICE_PID is not set", errSkipped)
	}
	pid, err := strconv.Atoi(value)
	if err != nil || pid < 2 {
		return 0, fmt.Errorf("USER_SERVICE_PID is %q", value)
	}
	return pid, nil
}
