{{/* How long a pod may take to stop, by its settings or their defaults, and 10 s to spare. */}}
{{- define "generation.graceSeconds" -}}
{{- $shutdown := dig "SHUTDOWN_SECONDS" "" .Values.settings | default 9 -}}
{{- $drainDelay := dig "DRAIN_DELAY_SECONDS" 0 .Values.settings -}}
{{- addf $shutdown $drainDelay 10 | ceil | int64 -}}
{{- end }}

{{- define "generation.env" -}}
- {name: LISTEN_ADDRESS, value: {{ printf "%s:50051" .Values.bindHost | quote }}}
- {name: ADMIN_ADDRESS, value: {{ printf "%s:9090" .Values.bindHost | quote }}}
{{- if .Values.settings.PUBLIC_URL }}
- {name: HTTP_ADDRESS, value: {{ printf "%s:8080" .Values.bindHost | quote }}}
{{- end }}
{{- if eq .Values.database "sqlite" }}
- {name: DATABASE_URL, value: "sqlite:////data/generation.db"}
{{- end }}
{{- if .Values.tokensSecret }}
- {name: AUTH_TOKENS_FILE, value: /config/tokens/tokens}
{{- end }}
{{- if .Values.callerLimits }}
- {name: CALLER_LIMITS_FILE, value: /config/limits/limits.toml}
{{- end }}
{{- if .Values.tls.secretName }}
- {name: TLS_CERT_FILE, value: /config/tls/tls.crt}
- {name: TLS_KEY_FILE, value: /config/tls/tls.key}
{{- end }}
{{- if .Values.tls.clientCa }}
- {name: TLS_CLIENT_CA_FILE, value: /config/tls/ca.crt}
{{- end }}
{{- range $name, $value := .Values.settings }}
- {name: {{ $name }}, value: {{ include "generation.text" $value | quote }}}
{{- end }}
{{- range $name, $secret := .Values.secrets }}
{{- if and $secret (not (and (eq $name "DATABASE_URL") (eq $.Values.database "sqlite"))) }}
- name: {{ $name }}
  valueFrom: {secretKeyRef: {name: {{ $secret.name }}, key: {{ $secret.key }}}}
{{- end }}
{{- end }}
{{- with .Values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Directories, not files: a mounted file does not change when its Secret does. */}}
{{- define "generation.volumeMounts" -}}
- {name: tmp, mountPath: /tmp}
{{- if eq .Values.database "sqlite" }}
- {name: data, mountPath: /data}
{{- end }}
{{- if .Values.tokensSecret }}
- {name: tokens, mountPath: /config/tokens, readOnly: true}
{{- end }}
{{- if .Values.callerLimits }}
- {name: limits, mountPath: /config/limits, readOnly: true}
{{- end }}
{{- if .Values.tls.secretName }}
- {name: tls, mountPath: /config/tls, readOnly: true}
{{- end }}
{{- with .Values.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "generation.volumes" -}}
- name: tmp
  emptyDir: {sizeLimit: 64Mi}
{{- if eq .Values.database "sqlite" }}
- name: data
  persistentVolumeClaim: {claimName: {{ include "generation.name" . }}}
{{- end }}
{{- if .Values.tokensSecret }}
- name: tokens
  secret: {secretName: {{ .Values.tokensSecret }}, defaultMode: 0440}
{{- end }}
{{- if .Values.callerLimits }}
- name: limits
  configMap: {name: {{ include "generation.name" . }}-limits}
{{- end }}
{{- if .Values.tls.secretName }}
- name: tls
  secret: {secretName: {{ .Values.tls.secretName }}, defaultMode: 0440}
{{- end }}
{{- with .Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end }}
